"""The core: processes, samplers, schedules, guidance, latents and training; nothing of molecules.

Start reading at `bio_diffusion.diffusion.process`, which fixes the notation.
"""
