"""The reference on disk: what is written is found again, whenever the writer was killed."""

import itertools

import numpy as np
import pytest
import torch

from entropyfloor.sft.floor.documents import DocumentCollator, documents_of
from entropyfloor.sft.floor.reference_cache import (
    ReferenceCache,
    fingerprint,
    finish_cache,
    write_cache,
)
from entropyfloor.sft.floor.reference_model import ReferenceModel
from entropyfloor_losses import IGNORE_INDEX
from tiny_models import tiny_model

K = 7


class Killed(Exception):
    """Stands for a SIGKILL between two batches."""


class Pass:
    """A pass over four batches of three rows; counts the forward passes of the reference."""

    def __init__(self, folder, *, seed=0, rank=0, ranks=1):
        self.model, self.folder, self.forwards = tiny_model(seed=seed), folder, 0
        self.rank, self.ranks = rank, ranks
        ids = torch.randint(3, 200, (12, 9), generator=torch.Generator().manual_seed(1))
        ids[10] = ids[2]  # a document that comes twice
        labels = ids.clone()
        labels[:, :3] = IGNORE_INDEX
        labels[5, 7:] = IGNORE_INDEX
        self.batches = [
            {"input_ids": ids[rows : rows + 3], "labels": labels[rows : rows + 3]}
            for rows in range(0, 12, 3)
        ]

    def write(self, *, killed_after=None):
        """``forwards`` counts the batches that are computed."""

        def until_killed():
            yield from itertools.islice(self.batches, killed_after)
            if killed_after is not None:
                raise Killed

        def counted(*_):
            self.forwards += 1

        hook = self.model.model.register_forward_hook(counted)
        which = fingerprint(self.model)
        reference = ReferenceModel(self.model)
        write_cache(self.folder, until_killed(), reference, which=which, k=K, rank=self.rank)
        finish_cache(self.folder, which=which, k=K, parts=self.ranks)
        hook.remove()
        return self

    def check(self):
        """What is found at every scored position against the model itself, in float64."""
        cached = ReferenceCache(self.folder, reference=fingerprint(self.model), k=K)
        wide = tiny_model(seed=0).double()
        wide.load_state_dict({n: v.double() for n, v in self.model.state_dict().items()})
        for batch in self.batches:
            targets = batch["labels"][:, 1:]
            found = cached(targets, input_ids=batch["input_ids"])
            collated = DocumentCollator(dict)(batch)
            by_document = cached(targets, documents=collated["documents"])
            for name, values in vars(found).items():
                assert values.equal(getattr(by_document, name)), name
            with torch.no_grad():
                exact = wide(batch["input_ids"]).logits[:, :-1].log_softmax(-1).topk(K, dim=-1)
            scored = targets != IGNORE_INDEX
            torch.testing.assert_close(
                found.log_probs[scored].double(), exact.values[scored], rtol=1e-5, atol=1e-5
            )
            assert found.indices[scored].equal(exact.indices[scored])


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("torn", ["", "entries-0.bin", "documents-0.jsonl"])
def test_what_a_killed_pass_wrote_is_not_computed_again(tmp_path, torn):
    """Also where the kill came in the middle of a write."""
    whole = Pass(tmp_path / "whole").write()
    whole.check()
    assert whole.forwards == 4
    folder = tmp_path / "half"
    with pytest.raises(Killed):
        Pass(folder).write(killed_after=2)
    assert not ReferenceCache.complete(folder)
    if torn:
        with (folder / torn).open("ab") as file:
            file.write(b'{"half a')
    again = Pass(folder).write()
    assert again.forwards == 2
    again.check()
    assert content(folder) == content(tmp_path / "whole")


def test_another_reference_begins_anew(tmp_path):
    with pytest.raises(Killed):
        Pass(tmp_path).write(killed_after=2)
    other = Pass(tmp_path, seed=1).write()
    assert other.forwards == 4
    other.check()
    with pytest.raises(ValueError, match="caches reference"):
        ReferenceCache(tmp_path, reference=fingerprint(tiny_model()), k=K)


def test_two_processes_write_a_part_each(tmp_path):
    """Then one writes it all: what the other left is no part of it."""
    parts = [Pass(tmp_path, rank=rank, ranks=2) for rank in (1, 0)]
    for part in parts:
        part.batches = part.batches[part.rank :: 2]
        part.write()
    Pass(tmp_path).check()
    alone = Pass(tmp_path).write()
    assert alone.forwards == 2
    alone.check()


def test_a_row_that_is_not_there_is_named(tmp_path):
    one = Pass(tmp_path).write()
    cached = ReferenceCache(tmp_path, reference=fingerprint(one.model), k=K)
    ids = torch.full((1, 6), 4)
    with pytest.raises(ValueError, match=r"not in .* was the data or its preparation changed"):
        cached(ids[:, 1:], input_ids=ids)


def test_a_row_begins_a_document_wherever_its_positions_do():
    ids = torch.arange(3, 9)[None]
    documents = [
        list(documents_of(ids[:, 1:], {"input_ids": ids, "position_ids": positions}))
        for positions in (torch.tensor([[4, 5, 6, 0, 1, 2]]), torch.tensor([[0, 1, 2, 0, 1, 2]]))
    ]
    ours, plain = documents
    assert [document.key for document in ours] == [document.key for document in plain]
    assert [list(document.scored) for document in ours] == [[0, 1], [3, 4]]


def test_a_set_without_scored_tokens_is_complete_and_empty(tmp_path):
    one = Pass(tmp_path)
    for batch in one.batches:
        batch["labels"][:] = IGNORE_INDEX
    one.write()
    targets = one.batches[0]["labels"][:, 1:]
    found = ReferenceCache(tmp_path, reference=fingerprint(one.model), k=K)(
        targets, input_ids=one.batches[0]["input_ids"]
    )
    assert one.forwards == 0 and found.indices.shape == (*targets.shape, K)
    assert np.isfinite(found.log_probs.numpy()).all()
