"""What a trained network says: the next token of every text, and texts made of them."""
