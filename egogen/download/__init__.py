"""Downloads that survive dropped connections, wrong bytes and hostile archives."""
