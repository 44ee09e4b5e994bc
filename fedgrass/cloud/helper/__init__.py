"""A helper of secure aggregation in an AWS account of its own: a customer's, an auditor's (docs/how-to/helper-account.md)."""
