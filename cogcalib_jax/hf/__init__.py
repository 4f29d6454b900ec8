"""Files in the layouts of Hugging Face and PEFT: checkpoints, adapters, tokenizers and model cards.

May import `models`, `calibration` and the rooms below them.
"""
