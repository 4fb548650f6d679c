"""Parts of a lab that break one promise each, for checks to catch. ``registry`` names them."""
