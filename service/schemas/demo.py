"""A small task: sort support tickets.

`abmll demo`, `abmll serve --demo` and the OpenAPI examples use it.
"""

from __future__ import annotations

from typing import Any

OPTIONS = ["billing", "delivery", "technical problem", "account access"]

SUPPORT = [
    ("I was charged twice for my March subscription.", "billing"),
    ("The parcel was meant to arrive on Monday and is still not here.", "delivery"),
    ("The app closes by itself whenever I open the camera.", "technical problem"),
    ("I forgot my password and the reset mail never comes.", "account access"),
    ("Why does my invoice show a fee I never agreed to?", "billing"),
    ("The courier left my package with a neighbour I do not know.", "delivery"),
    ("Since the update, exported files are empty.", "technical problem"),
    ("My login is locked after three attempts.", "account access"),
    ("Please refund the annual plan, I cancelled it last week.", "billing"),
    ("Can I change the shipping address of an order on its way?", "delivery"),
    ("The search page only shows an error 500.", "technical problem"),
    ("The code for two-step sign-in is refused every time.", "account access"),
    ("My card was debited although the payment page said it failed.", "billing"),
    ("Tracking has said 'out for delivery' for four days.", "delivery"),
    ("Sound stutters on every video call.", "technical problem"),
    ("Someone changed the email address of my profile and I cannot get in.", "account access"),
]

INPUTS = [
    "You took the money for two months at once.",
    "My order arrived at the wrong house.",
    "The page stays white when I press save.",
    "I cannot sign in with my new phone.",
    "Does the price on the bill include tax?",
    "Do you have a job for me?",
]


def predict_body() -> dict[str, Any]:
    """Make the body for `POST /v1/predict`: 16 labelled tickets, 6 new ones, a minimum confidence."""
    return {
        "support": [{"input": text, "output": label} for text, label in SUPPORT],
        "options": OPTIONS,
        "inputs": INPUTS,
        "samples": 16,
        "seed": 0,
        "gate": {"min_confidence": 0.5},
    }


QUESTIONS: list[dict[str, Any]] = [
    {"type": "predicate", "name": "urgent", "instructions": "Does the customer ask for help at once?"},
    {
        "type": "choice",
        "name": "team",
        "instructions": "Which team answers it?",
        "choices": [{"value": value} for value in OPTIONS],
    },
    {
        "type": "score",
        "name": "anger",
        "instructions": "How angry is the customer?",
        "levels": [{"label": "calm"}, {"label": "annoyed"}, {"label": "furious"}],
    },
]


def decide_body() -> dict[str, Any]:
    """Make the body for `POST /v1/decide`: three questions, three cases, a new ticket."""
    answers = [
        {"urgent": False, "team": "billing", "anger": "annoyed"},
        {"urgent": False, "team": "delivery", "anger": None},
        {"urgent": True, "team": "technical problem", "anger": "calm"},
    ]
    return {
        "questions": QUESTIONS,
        "cases": [
            {"input": text, "answers": given} for (text, _), given in zip(SUPPORT, answers, strict=False)
        ],
        "inputs": INPUTS[:1],
        "gates": {"team": {"min_confidence": 0.5}},
    }
