"""What can be promised of answers: certificates, prediction sets, alarms, held-out answers."""
