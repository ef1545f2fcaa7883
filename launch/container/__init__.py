"""What containers of this project are made of."""
