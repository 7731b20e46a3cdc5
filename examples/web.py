"""A web backend: tasks over HTTP, and their events over WebSockets that reconnect.

pip install fastapi uvicorn websockets
python -m examples.weather          the workers, until Ctrl-C
python -m examples.web              in another terminal: open http://127.0.0.1:8000 (or another port, as an argument)
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from fastapi.responses import HTMLResponse
from pydantic import BaseModel

from examples.weather import orchestrator, weather_agent
from factorial import AgentContext
from factorial.errors import ConfigError


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    await orchestrator.close()  # uvicorn kills itself with the signal that stopped it, so `atexit` handlers do not run


app = FastAPI(lifespan=lifespan)


class Question(BaseModel):
    # A real program takes the user from the session, and never from the body of a request.
    user_id: str
    query: str


@app.post("/api/ask")
async def ask(question: Question) -> dict[str, str]:
    task = await orchestrator.enqueue_task(
        agent=weather_agent, owner_id=question.user_id, payload=AgentContext(query=question.query)
    )
    return {"task_id": task.id}


@app.websocket("/ws/{user_id}")
async def watch(websocket: WebSocket, user_id: str, after: str | None = None) -> None:
    """Send the user's events. `after` is the `id` of the last event that the browser received."""
    await websocket.accept()
    sending = asyncio.create_task(send_updates(websocket, user_id, after))
    leaving = asyncio.create_task(wait_until_closed(websocket))  # notices it also while there is nothing to send
    try:
        done, _ = await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        sending.cancel()
        leaving.cancel()
        await asyncio.gather(sending, leaving, return_exceptions=True)
    if sending in done:
        sending.result()  # raises the error, if there was one


async def send_updates(websocket: WebSocket, user_id: str, after: str | None) -> None:
    try:
        async for update in orchestrator.subscribe_to_updates(owner_id=user_id, after=after):
            await websocket.send_text(json.dumps(update))
    except ConfigError as refused:  # `after` is not an event id
        await websocket.close(code=1008, reason=str(refused)[:120])
    except WebSocketDisconnect:
        pass


async def wait_until_closed(websocket: WebSocket) -> None:
    async for _ in websocket.iter_text():
        pass


PAGE = """<!doctype html>
<meta charset="utf-8">
<title>Weather</title>
<form><input name="query" size="50" value="What's the weather in San Francisco?"> <button>Ask</button></form>
<pre></pre>
<script>
  const user = "user123", form = document.forms[0], out = document.querySelector("pre")
  const answers = {}  // for each task, the element with the text of the model call in flight
  let last = null

  function watch() {
    const after = last ? "?after=" + last : ""
    const socket = new WebSocket(`${location.origin.replace("http", "ws")}/ws/${user}${after}`)
    socket.onmessage = message => {
      const update = JSON.parse(message.data)
      last = update.id ?? last
      if (update.event_type == "progress_update_completion_chunk") {
        answers[update.task_id] ??= out.appendChild(document.createElement("i"))
        answers[update.task_id].append(update.data.text)
        return
      }
      // The call has failed, or its text is complete: the page shows the answer when it has arrived as a whole.
      if (["completion_retracted", "progress_update_completion_completed"].includes(update.event_type)) {
        answers[update.task_id]?.remove()
        delete answers[update.task_id]
      }
      out.append(update.event_type, update.data && update.event_type == "agent_output" ? ": " + update.data : "", "\\n")
    }
    socket.onclose = () => setTimeout(watch, 1000)  // continue after the last event received
  }

  form.onsubmit = event => {
    event.preventDefault()
    fetch("/api/ask", {
      method: "POST",
      headers: {"Content-Type": "application/json"},
      body: JSON.stringify({user_id: user, query: form.query.value}),
    })
  }
  watch()
</script>
"""


@app.get("/")
async def page() -> HTMLResponse:
    return HTMLResponse(PAGE)


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]) if sys.argv[1:] else 8000)
