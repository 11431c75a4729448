"""The compatibility check, under the names by which Python programs know it."""
