"""The echelon: losses × depths × seeds, screened, trained with RL, compared; resumable."""
