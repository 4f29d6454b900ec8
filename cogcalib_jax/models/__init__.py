"""The decoder: one core for the Llama, Mistral and Qwen families, with LoRA and generation."""
