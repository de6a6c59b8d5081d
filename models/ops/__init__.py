"""Operations: ``reference`` is the slow, obvious specification of each; the other files are what runs."""
