"""The newsroom's web backend, written for nfactorial 0.1.x: `uvicorn server:app`."""

import json
from typing import Any

from desk import DeskContext, desk
from fastapi import FastAPI, HTTPException, WebSocket, WebSocketDisconnect
from newsroom import orchestrator
from pydantic import BaseModel

from factorial.exceptions import InactiveTaskError, InvalidTaskIdError, TaskNotFoundError
from factorial.queue.task import Task, TaskStatus

app = FastAPI()


class EnqueueRequest(BaseModel):
    user_id: str
    query: str
    topic: str
    message_history: list[dict[str, Any]] = []


@app.post("/api/enqueue")
async def enqueue(request: EnqueueRequest):
    task = Task.create(
        owner_id=request.user_id,
        agent=desk.name,
        payload=DeskContext(query=request.query, topic=request.topic, messages=request.message_history),
    )
    await orchestrator.enqueue_task(agent=desk, task=task)
    return {"task_id": task.id}


@app.post("/api/cancel/{task_id}")
async def cancel(task_id: str):
    try:
        await orchestrator.cancel_task(task_id=task_id)
    except (TaskNotFoundError, InvalidTaskIdError) as error:
        raise HTTPException(404, str(error)) from error
    except InactiveTaskError as error:
        return {"success": False, "error": str(error)}
    return {"success": True}


@app.post("/api/steer/{task_id}")
async def steer(task_id: str, messages: list[dict[str, Any]]):
    await orchestrator.steer_task(task_id=task_id, messages=messages)
    return {"success": True}


@app.get("/api/tasks/{task_id}")
async def get_task(task_id: str):
    status = await orchestrator.get_task_status(task_id)
    data = await orchestrator.get_task_data(task_id)
    agent = await orchestrator.get_task_agent(task_id)
    task = Task.from_dict(data, desk.context_class)
    return {
        "status": status,
        "done": status in (TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.CANCELLED),
        "active": status in (TaskStatus.PROCESSING, TaskStatus.ACTIVE, TaskStatus.PAUSED),
        "agent": agent.name if agent else None,
        "known": orchestrator.get_agent("desk") is desk and orchestrator.agents == [desk],
        "owner": data["metadata"]["owner_id"],
        "output": data["payload"].get("output"),
        "sources": [source.title for source in task.payload.sources],
        "retries": task.retries,
    }


@app.websocket("/ws/{user_id}")
async def websocket_updates(websocket: WebSocket, user_id: str):
    await websocket.accept()
    try:
        async for update in orchestrator.subscribe_to_updates(
            owner_id=user_id, timeout=1.0, ignore_subscribe_messages=True
        ):
            await websocket.send_text(json.dumps(update))
    except WebSocketDisconnect:
        pass


@app.websocket("/ws/{user_id}/channel")
async def websocket_channel(websocket: WebSocket, user_id: str):
    await websocket.accept()
    redis_client = await orchestrator.get_redis_client()
    pubsub = redis_client.pubsub()
    channel = orchestrator.get_updates_channel(owner_id=user_id)
    await pubsub.subscribe(channel)
    await websocket.send_text(json.dumps({"event_type": "listening"}))
    try:
        while True:
            message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=1.0)
            if message and message["type"] == "message":
                await websocket.send_text(message["data"])
    except WebSocketDisconnect:
        pass
    finally:
        await pubsub.unsubscribe(channel)
        await pubsub.aclose()
        await redis_client.close()
