"""``splitrank gsm8k``: the same questions to several layouts, and a paired comparison of their answers."""
