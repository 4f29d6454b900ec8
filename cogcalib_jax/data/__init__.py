"""From stored rows to padded arrays: rows, splits, prompts, token ids, batches.

`task` is the library's view of it, `loading` and `encoding` that of the programs.
"""
