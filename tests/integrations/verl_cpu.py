"""A platform for verl that is the CPU, so that its SFT trainer runs here; verl imports it."""

from contextlib import nullcontext

import torch
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry


class _Device:
    """``torch.cpu``, and what verl asks of ``torch.cuda``."""

    def mem_get_info(self, *_):
        return 0, 1

    def get_device_name(self, *_):
        return "cpu"

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(torch.cpu, name, lambda *_, **__: 0)


@PlatformRegistry.register(platform="cpu")
class PlatformCPU(PlatformBase):
    device_name = "cpu"
    vendor_name = "cpu"
    device_module = _Device()

    def is_available(self):
        return True

    def is_platform_available(self, use_smi_check=False):
        return True

    def current_device(self):
        return "cpu"

    def device_count(self):
        return 1

    def set_device(self, device_index): ...

    def synchronize(self, device_index=None): ...

    def manual_seed(self, seed):
        torch.manual_seed(seed)

    def manual_seed_all(self, seed):
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings): ...

    def empty_cache(self): ...

    def get_device_capability(self, device_index=0):
        return None, None

    def communication_backend_name(self):
        return "gloo"

    def visible_devices_envvar(self):
        return "CUDA_VISIBLE_DEVICES"

    def nvtx_range(self, msg):
        return nullcontext()

    def profiler_start(self): ...

    def profiler_stop(self): ...

    def ray_resource_name(self):
        return "CPU"

    def ray_noset_envvars(self):
        return []

    def is_ipc_supported(self):
        return False

    def cudart(self):
        return None


_init_process_group = torch.distributed.init_process_group


def _init_on_cpu(*arguments, backend=None, **keywords):
    """verl names a backend for the CPU and one for the device, which are the same here."""
    return _init_process_group(*arguments, backend="gloo", **keywords)


torch.distributed.init_process_group = _init_on_cpu
