"""The reports of supervisors, and the orders to them."""
