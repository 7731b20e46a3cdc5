"""The newsroom's orchestrator, written for nfactorial 0.1.x: `python newsroom.py` runs the workers."""

import os

from desk import desk

from factorial import (
    AgentWorkerConfig,
    MaintenanceWorkerConfig,
    MetricsTimelineConfig,
    ObservabilityConfig,
    Orchestrator,
    TaskTTLConfig,
)

orchestrator = Orchestrator(
    redis_host=os.getenv("REDIS_HOST", "localhost"),
    redis_port=int(os.getenv("REDIS_PORT", "6379")),
    redis_db=0,
    redis_max_connections=200,
    openai_api_key=os.getenv("OPENAI_API_KEY"),
    xai_api_key=os.getenv("XAI_API_KEY"),
    observability_config=ObservabilityConfig(
        enabled=True, host="0.0.0.0", port=8081, cors_origins=["*"], dashboard_name="Newsroom"
    ),
    metrics_config=MetricsTimelineConfig(timeline_duration=3600, bucket_size="minutes", retention_multiplier=2.0),
    namespace="newsroom",
)

orchestrator.register_runner(
    agent=desk,
    agent_worker_config=AgentWorkerConfig(
        workers=5,
        batch_size=15,
        max_retries=5,
        heartbeat_interval=5,
        missed_heartbeats_threshold=3,
        missed_heartbeats_grace_period=5,
        turn_timeout=1200,
    ),
    maintenance_worker_config=MaintenanceWorkerConfig(
        interval=10,
        workers=1,
        task_ttl=TaskTTLConfig(completed_ttl=3600, failed_ttl=86400, cancelled_ttl=1800),
        max_cleanup_batch=100,
        metrics_timeline=MetricsTimelineConfig(),
    ),
)

if __name__ == "__main__":
    orchestrator.run(run_observability_server=False)
