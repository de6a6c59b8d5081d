"""What processes say to each other: messages, their encoding, sampling parameters."""
