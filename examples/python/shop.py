"""Shop in Python with FastAPI: a login, a page, and orders that appear live. See ../README.md."""

import base64
import hashlib
import json
import os
import secrets
import time
import uuid
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import nats
from fastapi import Cookie, Depends, FastAPI, Form, HTTPException, Response
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse
from itsdangerous import BadSignature, URLSafeSerializer

# A toy. A real shop has a table of users with hashed passwords, and limits attempts.
PASSWORDS = {"alice": "wonderland", "bob": "builder"}
PAGE = Path(__file__).parent.parent / "shop.html"
LIFETIME = 8 * 3600  # seconds of a session
COOKIE = {"key": "session", "httponly": True, "samesite": "lax"}  # and "secure": True with TLS
# All pods of a shop need the same secret. Without one, sessions end with the process.
SECRET = os.environ.get("SESSION_SECRET") or secrets.token_hex(32)
signer = URLSafeSerializer(SECRET, signer_kwargs={"digest_method": hashlib.sha256})


@asynccontextmanager
async def lifespan(app: FastAPI):
    connection = await nats.connect(os.environ.get("NATS_URL", "nats://127.0.0.1:4222"))
    app.state.jetstream = connection.jetstream()
    await app.state.jetstream.add_stream(name="ORDERS", subjects=["orders.>"])
    yield
    await connection.drain()


app = FastAPI(lifespan=lifespan)


# The session is the signed cookie: any pod can read it, and no pod stores it.
def find_session(session: Annotated[str, Cookie()] = ""):
    try:
        found = signer.loads(session)
    except BadSignature:
        return None
    return found if found["expires"] > time.time() else None


def require_session(session: Annotated[dict | None, Depends(find_session)]):
    if session is None:
        raise HTTPException(401)
    return session


MaybeSession = Annotated[dict | None, Depends(find_session)]
Session = Annotated[dict, Depends(require_session)]


@app.get("/")
async def page():
    return FileResponse(PAGE)


@app.get("/me")
async def me(session: MaybeSession):
    user = session["user"] if session else None
    return JSONResponse({"user": user}, headers={"Cache-Control": "no-store"})


@app.post("/login")
async def login(user: Annotated[str, Form()], password: Annotated[str, Form()]):
    if PASSWORDS.get(user) != password:
        raise HTTPException(401, "Wrong name or password.")
    session = {"user": user, "id": f"{user}.{uuid.uuid4()}", "expires": int(time.time()) + LIFETIME}
    response = RedirectResponse("/", 303)
    response.set_cookie(value=signer.dumps(session), max_age=LIFETIME, **COOKIE)
    return response


@app.post("/logout")
async def logout(session: MaybeSession):
    if session:
        # Sidestream ends the event streams of this session at once, on every pod, and rejects a copy of its cookie.
        revocations = await app.state.jetstream.key_value("revocations")
        key = "client." + base64.urlsafe_b64encode(session["id"].encode()).decode().rstrip("=")
        entry = {"at": int(time.time()), "until": session["expires"]}
        await revocations.put(key, json.dumps(entry).encode())
    response = RedirectResponse("/", 303)
    response.delete_cookie(**COOKIE)
    return response


@app.post("/orders", status_code=201)
async def order(session: Session, item: Annotated[str, Form(min_length=1, max_length=100)]):
    order = {"id": str(uuid.uuid4()), "item": item}
    await app.state.jetstream.publish(f"orders.{session['user']}.{order['id']}", json.dumps(order).encode())
    return order


@app.get("/orders/live")
async def live(session: Session):
    return Response(
        headers={
            "Sidestream-Subscribe": f"orders.{session['user']}.>",
            "Sidestream-Client": session["id"],
            "Sidestream-Expires": str(session["expires"]),
        }
    )
