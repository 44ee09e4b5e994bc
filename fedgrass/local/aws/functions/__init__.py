"""AWS Lambda: invoking the functions that moto stores."""
