"""The seed study: its recorded answers, its own parser, and what comes out when they are scored again."""
