"""What runs in a lab: its programs, what they mount, whether they listen, and what the audit says of them."""
