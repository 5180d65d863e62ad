"""InstructGPT in JAX: language models that follow instructions, trained with human feedback (Ouyang
et al. 2022, arXiv:2203.02155).
"""
