"""The figures of a study: what each shows as data, and matplotlib, which draws it."""
