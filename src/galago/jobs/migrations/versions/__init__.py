"""One file for each change of the schema; the newest revision is `schema.HEAD`."""
