"""A story service in Flask, streamed as it is written: pip install flask; flask --app story_service run

curl 'http://127.0.0.1:5000/story?prompt=Once+upon+a+time&seed=7'
"""

from __future__ import annotations

from flask import Flask, Response, abort, request

import flashlm

app = Flask(__name__)
# One model for all threads of the server; each request generates its own text.
model = flashlm.load("builtin")


@app.get("/story")
def story() -> Response:
    try:
        pieces = model.generate(
            request.args.get("prompt", "Once upon a time"),
            tokens=min(request.args.get("tokens", 200, type=int), 1000),
            temperature=request.args.get("temperature", 0.8, type=float),
            seed=request.args.get("seed", 42, type=int),
        )
    except flashlm.SettingsError as error:
        abort(400, str(error))
    return Response(pieces, mimetype="text/plain; charset=utf-8")
