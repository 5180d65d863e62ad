"""Models of Hugging Face: families as data, weights, adapters of peft."""
