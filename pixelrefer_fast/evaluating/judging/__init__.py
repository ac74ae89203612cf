"""Language models as judges, behind any endpoint that speaks OpenAI's chat completions."""
