"""What Flower costs around the frames: bytes and seconds."""
