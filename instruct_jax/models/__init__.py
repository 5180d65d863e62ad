"""Models: one decoder, a language-model seam, scalar heads."""
