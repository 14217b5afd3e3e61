"""Mutation tests of what decides a number: every operator, constant and branch is changed once, and a test has to notice."""
