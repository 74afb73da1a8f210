"""Judging circuits: faithfulness, CPR and CMD, completeness, minimality, ROC against a known circuit."""
