"""Class names and prompt templates of zero-shot evaluation, as data; README.md says where each list comes from.

`lists` reads them: a packaged one by name ("imagenet", "photos", ...), a person's own by file or as a list.
"""
