"""The programmer's web backend, written for nfactorial 0.1.31: `uvicorn server:app`."""

import json
from typing import Any

from agent import Workspace, orchestrator, programmer
from fastapi import FastAPI, HTTPException, WebSocket, WebSocketDisconnect
from pydantic import BaseModel

app = FastAPI()


class Job(BaseModel):
    user: str
    query: str
    files: dict[str, str]
    history: list[dict[str, Any]] = []


class Decision(BaseModel):
    task_id: str
    tool_call_id: str
    approved: bool
    report: str = ""


@app.post("/jobs")
async def start_job(job: Job):
    payload = Workspace(query=job.query, files=job.files, messages=job.history, turn=0)
    task = await orchestrator.enqueue_task(agent=programmer, owner_id=job.user, payload=payload)
    return {"task_id": task.id}


@app.post("/decisions")
async def decide(decision: Decision):
    result = {"status": "approved" if decision.approved else "rejected", "report": decision.report}
    accepted = await orchestrator.complete_deferred_tool(
        task_id=decision.task_id, tool_call_id=decision.tool_call_id, result=result
    )
    if not accepted:
        raise HTTPException(status_code=409, detail="nothing waits for this decision")
    return {"success": True}


@app.get("/jobs/{task_id}")
async def show_job(task_id: str):
    data = await orchestrator.get_task_data(task_id)
    status = await orchestrator.get_task_status(task_id)
    return {"status": status.value, **{name: data["payload"][name] for name in ("files", "changed", "output")}}


@app.websocket("/updates/{user}")
async def updates(websocket: WebSocket, user: str):
    await websocket.accept()
    try:
        async for update in orchestrator.subscribe_to_updates(owner_id=user):
            await websocket.send_text(json.dumps(update))
    except WebSocketDisconnect:
        pass
