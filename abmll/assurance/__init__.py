"""What can be promised of answers: certificates, prediction sets, drift alarms, held-out estimates."""
