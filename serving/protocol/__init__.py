"""What crosses process boundaries: messages, their encoding, sampling parameters."""
