"""Pictures: a U-Net under Gaussian noise or on grey levels as tokens, with or without latents."""
