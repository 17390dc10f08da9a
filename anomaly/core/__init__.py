"""Values and errors that every other layer shares. Imports numpy, pydantic and nothing heavier."""
