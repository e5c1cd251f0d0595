"""Moved: experiments claim their folders as everything else does."""

from entropyfloor.claimed_folder import claim_folder as claim_folder
