"""The rooms of the Space: `service` writes, `page` shows, `static/` is what the browser gets."""
