"""The editor's web backend, written for nfactorial 0.1.31: `uvicorn server:app`."""

import json

from agent import editor, orchestrator
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from pydantic import BaseModel

from factorial import AgentContext

app = FastAPI()


class Question(BaseModel):
    reader: str
    query: str


@app.post("/stories")
async def order_story(question: Question):
    # The plain context: the editor's own fields have defaults.
    task = await orchestrator.enqueue_task(
        agent=editor, owner_id=question.reader, payload=AgentContext(query=question.query)
    )
    return {"task_id": task.id}


@app.websocket("/updates/{reader}")
async def updates(websocket: WebSocket, reader: str):
    await websocket.accept()
    try:
        async for update in orchestrator.subscribe_to_updates(owner_id=reader):
            await websocket.send_text(json.dumps(update))
    except WebSocketDisconnect:
        pass
