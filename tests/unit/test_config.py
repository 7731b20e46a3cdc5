"""Settings: their defaults, their bounds, the TOML file, and what each mistake is called. Nothing is fake."""

from pathlib import Path

import pytest

from factorial import AgentWorkerConfig, MaintenanceWorkerConfig, RedisConfig, SupervisorConfig, TaskTTLConfig
from factorial.config import (
    EventsConfig,
    GroupConfig,
    HealthConfig,
    MetricsTimelineConfig,
    ObservabilityConfig,
    RunnerConfig,
    RunnerSupervisorConfig,
    SystemConfig,
)
from factorial.config.toml import naming
from factorial.config.validated import as_mapping, from_mapping
from factorial.errors import ConfigError, FactorialError


@pytest.mark.parametrize(
    "cls",
    [
        AgentWorkerConfig,
        MaintenanceWorkerConfig,
        RedisConfig,
        SupervisorConfig,
        TaskTTLConfig,
        EventsConfig,
        HealthConfig,
        RunnerSupervisorConfig,
        MetricsTimelineConfig,
        ObservabilityConfig,
    ],
)
def test_every_setting_has_a_default(cls: type) -> None:
    assert cls() == cls()


def test_the_documented_names_of_a_worker() -> None:
    config = AgentWorkerConfig(workers=2, batch_size=3, max_retries=0, heartbeat_interval=1, turn_timeout=9)
    assert (config.workers, config.batch_size, config.max_retries, config.turn_timeout) == (2, 3, 0, 9.0)
    assert config.lease == 2.0


def test_the_documented_names_of_maintenance() -> None:
    ttl = TaskTTLConfig(completed_ttl=1, failed_ttl=2, cancelled_ttl=3)
    config = MaintenanceWorkerConfig(interval=5, workers=2, task_ttl=ttl)
    assert config.task_ttl.failed_ttl == 2.0


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: AgentWorkerConfig(workers=0), "'workers': input should be greater than or equal to 1"),
        (lambda: AgentWorkerConfig(batch_size=-1), "batch_size"),
        (lambda: AgentWorkerConfig(max_retries=-1), "max_retries"),
        (lambda: AgentWorkerConfig(heartbeat_interval=0), "heartbeat_interval"),
        (lambda: AgentWorkerConfig(turn_timeout="soon"), "turn_timeout"),  # type: ignore[arg-type]
        (lambda: AgentWorkerConfig(worker=3), "unknown key 'worker'; did you mean 'workers'?"),  # type: ignore[call-arg]
        (lambda: AgentWorkerConfig(missed_heartbeats=1), "missed_heartbeats"),
        (lambda: RedisConfig(namespace="a b"), "namespace='a b': use 1 to 64"),
        (lambda: RedisConfig(namespace="{a}"), "namespace"),
        (lambda: TaskTTLConfig(completed_ttl=-1), "completed_ttl"),
        (lambda: SupervisorConfig(strategy="whatever"), "strategy"),  # type: ignore[arg-type]
        (lambda: RunnerConfig(), "'agent' is missing"),  # type: ignore[call-arg]
        (lambda: RunnerConfig(agent="module"), "write it as 'module:attribute'"),
        (lambda: EventsConfig(zzz=1), "unknown key 'zzz'; known here: max_per_owner, ttl"),  # type: ignore[call-arg]
        (lambda: RunnerConfig(agent="a/b.py:c"), "agent='a/b.py:c': write it as 'module:attribute'"),
        (lambda: RunnerConfig(agent="a:b", significant=True), "a permanent child never ends by itself"),
        (lambda: GroupConfig(name="a.b"), "name='a.b': use 1 to 64"),
        (lambda: GroupConfig(name=""), "name='': use 1 to 64"),
        (lambda: HealthConfig(soft_memory_mb=9, hard_memory_mb=9), "soft_memory_mb=9 must be less than hard_memory_mb"),
        (lambda: HealthConfig(blocked_after=0.01), "'blocked_after': input should be greater than or equal to 0.1"),
        (lambda: SupervisorConfig(grace=float("inf")), "'grace': input should be a finite number"),
        (lambda: SystemConfig(runner=(RunnerConfig(agent="a:b", group="g"),)), "there is no such [[group]]"),
        (lambda: MetricsTimelineConfig(bucket_size="weeks"), "'bucket_size': input should be 'seconds', 'minutes'"),  # type: ignore[arg-type]
        (
            lambda: MetricsTimelineConfig(timeline_duration=3600, bucket_size="days"),
            "timeline_duration=3600 is less than one of its buckets, which bucket_size='days' makes 86400 seconds long",
        ),
        (
            lambda: MetricsTimelineConfig(timeline_duration=5001, bucket_size="seconds"),
            "timeline_duration=5001 with bucket_size='seconds' makes 5001 buckets, and the most is 5000",
        ),
        (lambda: MetricsTimelineConfig(timeline_duration=0), "timeline_duration"),
        (lambda: MetricsTimelineConfig(retention_multiplier=0.5), "'retention_multiplier': input should be greater"),
        (lambda: MetricsTimelineConfig(buckets="minutes"), "unknown key 'buckets'; did you mean 'bucket_size'?"),  # type: ignore[call-arg]
        (lambda: ObservabilityConfig(port=0), "'port': input should be greater than or equal to 1"),
        (lambda: ObservabilityConfig(port="8080"), "'port': input should be a valid integer"),  # type: ignore[arg-type]
        (lambda: ObservabilityConfig(host="http://here"), "host='http://here': give a name or an address alone"),
        (lambda: ObservabilityConfig(host=""), "host='': give a name or an address alone"),
        (lambda: ObservabilityConfig(cors_origins=["a.example"]), "cors_origins: 'a.example' is not an origin"),
        (lambda: ObservabilityConfig(cors_origins=["https://a/b"]), "cors_origins: 'https://a/b' is not an origin"),
    ],
)
def test_a_mistake_is_named(make: object, complaint: str) -> None:
    with pytest.raises(ConfigError) as raised:
        make()  # type: ignore[operator]
    assert complaint in str(raised.value)
    assert {FactorialError, ValueError} <= set(type(raised.value).__mro__)


@pytest.mark.parametrize(
    ("config", "length", "buckets", "kept_for", "name"),
    [
        (MetricsTimelineConfig(), 60, 60, 7200, "1h"),
        (MetricsTimelineConfig(timeline_duration=90, bucket_size="seconds"), 1, 90, 180, "90s"),
        (MetricsTimelineConfig(timeline_duration=5400.5, retention_multiplier=1.5), 60, 91, 8101, "90m"),
        (MetricsTimelineConfig(timeline_duration=7 * 86_400, bucket_size="hours"), 3600, 168, 14 * 86_400, "7d"),
        (MetricsTimelineConfig(timeline_duration=86_400, bucket_size="days"), 86_400, 1, 172_800, "1d"),
    ],
)
def test_what_follows_from_the_timeline(
    config: MetricsTimelineConfig, length: int, buckets: int, kept_for: int, name: str
) -> None:
    assert (config.bucket_duration, config.bucket_count) == (length, buckets)
    assert (config.retention_duration, config.display_name) == (kept_for, name)


def test_settings_are_frozen() -> None:
    with pytest.raises(Exception, match="workers"):
        AgentWorkerConfig().workers = 3  # type: ignore[misc]


def test_settings_travel_to_another_process_as_plain_data() -> None:
    runner = RunnerConfig(
        agent="m:a", worker=AgentWorkerConfig(workers=3), maintenance=MaintenanceWorkerConfig(interval=7), processes=2
    )
    assert from_mapping(RunnerConfig, as_mapping(runner)) == runner
    assert runner.process_count == 2
    assert RunnerConfig(agent="m:a", worker=AgentWorkerConfig(processes=4)).process_count == 4


GOOD = """
[redis]
url = "unix:///tmp/s"
namespace = "ns"

[metrics]
bucket_size = "hours"
timeline_duration = 86400

[supervisor]
strategy = "rest_for_one"
grace = 5

[[runner]]
agent = "myapp.agents:weather"
processes = 2
[runner.worker]
workers = 2
batch_size = 10
[runner.maintenance.task_ttl]
completed_ttl = 60
"""


def toml(tmp_path: Path, text: str) -> SystemConfig:
    file = tmp_path / "system.toml"
    file.write_text(text, encoding="utf-8")
    return SystemConfig.from_toml(file)


def test_the_toml_file(tmp_path: Path) -> None:
    config = toml(tmp_path, GOOD)
    [runner] = config.runner
    assert (config.redis.namespace, config.supervisor.grace, runner.process_count) == ("ns", 5.0, 2)
    assert config.metrics == MetricsTimelineConfig(bucket_size="hours", timeline_duration=86_400)
    assert (runner.worker.batch_size, runner.maintenance.task_ttl.completed_ttl) == (10, 60.0)
    assert runner.worker.turn_timeout == AgentWorkerConfig().turn_timeout


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "there is no [[runner]]"),
        ("[redis", "it is not valid TOML"),
        (GOOD + "\nspeed = 3", "[[runner]] 1: unknown key 'maintenance.task_ttl.speed'"),
        (GOOD.replace("batch_size", "batch_sise"), "did you mean 'batch_size'?"),
        (GOOD.replace("[supervisor]", "[supervisr]"), "unknown key 'supervisr'; did you mean 'supervisor'?"),
        (GOOD.replace("workers = 2", "workers = 'two'"), "[[runner]] 1: 'worker.workers'"),
        (GOOD.replace('agent = "myapp.agents:weather"', ""), "[[runner]] 1: 'agent' is missing"),
        (GOOD.replace(":weather", ""), "write it as 'module:attribute'"),
        (GOOD.replace("86400", "60"), "metrics.timeline_duration=60 is less than one of its buckets"),
    ],
)
def test_a_mistake_in_the_file_is_named_with_the_file(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as raised:
        toml(tmp_path, text)
    assert complaint in str(raised.value)
    assert "system.toml" in str(raised.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such file"):
        SystemConfig.from_toml(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        SystemConfig.from_toml(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b'[redis]\nurl = "\xff"')
    with pytest.raises(ConfigError, match="cannot be read"):
        SystemConfig.from_toml(tmp_path / "latin.toml")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('[runner]\nagent = "a:b"', "write [[runner]], with double brackets"),
        ('redis = 3\n[[runner]]\nagent = "a:b"', "write it as a table, [redis]"),
        ('[redis]\nurl = "http://x"\n[[runner]]\nagent = "a:b"', "this one begins with 'http'"),
        ('[redis]\nurl = "embedded:"\n[[runner]]\nagent = "a:b"', "embedded:DIR"),
        ('[[runner]]\nagent = "a:b"\nprocesses = "2"', "valid integer"),
        ('[[runner]]\nagent = "a:b"\nprocesses = true', "valid integer"),
        ('[[runner]]\nagent = "a:b"\nprocesses = 2\n[runner.worker]\nprocesses = 3', "contradict each other"),
    ],
)
def test_a_slip_in_the_file_is_reported_in_its_own_terms(tmp_path: Path, text: str, complaint: str) -> None:
    file = tmp_path / "system.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as refused:
        SystemConfig.from_toml(file)
    assert complaint in str(refused.value)


GROUPED = """
[supervisor]
auto_shutdown = "all_significant"

[[group]]
name = "pipeline"
strategy = "rest_for_one"
restart = "transient"
significant = true

[[runner]]
agent = "a:planner"
group = "pipeline"
[runner.supervisor]
strategy = "one_for_all"
intensity = 0
[runner.health]
soft_memory_mb = 1
hard_memory_mb = 2

[[runner]]
agent = "a:weather"
restart = "temporary"
"""


def test_groups_supervisors_and_health(tmp_path: Path) -> None:
    config = toml(tmp_path, GROUPED)
    [group] = config.group
    planner, weather = config.runner
    assert (group.name, group.strategy, group.intensity, group.period) == ("pipeline", "rest_for_one", None, None)
    assert (planner.group, planner.supervisor.strategy, planner.supervisor.intensity) == ("pipeline", "one_for_all", 0)
    assert (planner.health.soft_memory, planner.health.hard_memory) == (1 << 20, 2 << 20)
    assert (weather.group, weather.restart, weather.health.hard_memory) == (None, "temporary", None)


def test_errors_that_are_found_later_name_the_file() -> None:
    with pytest.raises(ConfigError, match=r"^a\.toml: no such agent$"), naming("a.toml"):
        raise ConfigError("no such agent")


@pytest.mark.parametrize(
    "url",
    [
        "redis://h", "redis://h:1/0", "redis://[::1]:6379/2", "rediss://u:p%2F@h:1/0?ssl_cert_reqs=none",
        "redis://:a@b@h", "unix:///tmp/s?db=1", "unix://u:p@/tmp/s", "embedded:.factorial", "embedded:/var/lib/x",
    ],
)  # fmt: skip
def test_urls_of_every_kind(url: str) -> None:
    assert RedisConfig(url=url).resolved_url == url


@pytest.mark.parametrize("url", ["unix://:12/34s3cret@/tmp/s", "unix://u:pa/s3cret@/tmp/s", "unix://tmp/s"])
def test_a_unix_socket_has_no_host(url: str) -> None:
    """What looks like a host is a password with a slash. Its rest would be taken for the path, and shown."""
    with pytest.raises(ConfigError, match=r"unix://USER:PASSWORD@/PATH.*%2F") as raised:
        RedisConfig(url=url)
    assert "cret" not in str(raised.value)


def test_a_possible_password_is_not_taken_for_a_scheme() -> None:
    with pytest.raises(ConfigError, match=r"redis\+cluster://.*embedded:DIR$"):
        RedisConfig(url="s3cr3tpassword@redis:6379")


@pytest.mark.parametrize(
    "url", ["redis://h:x", "redis://h/db", "redis:h", "rediss://:se/cret@h", "redis://h:1:2", "redis://:cret@h,:cret@i"]
)
def test_a_url_that_cannot_be_read_is_not_repeated(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may hold a password."""
    with pytest.raises(ConfigError, match="HOST:PORT/DATABASE") as raised:
        RedisConfig(url=url)
    assert "cret" not in str(raised.value)
    monkeypatch.setenv("REDIS_URL", url)
    with pytest.raises(ConfigError, match=r"in the environment, REDIS_URL: write it as .*HOST:PORT/DATABASE"):
        _ = RedisConfig().resolved_url


def test_the_environment_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REDIS_URL", "REDIS_HOST", "REDIS_PORT", "REDIS_DB", "REDIS_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    assert RedisConfig().resolved_url == "redis://localhost:6379/0"
    monkeypatch.setenv("REDIS_HOST", "db1")
    monkeypatch.setenv("REDIS_PASSWORD", "a/b@c")
    assert RedisConfig().resolved_url == "redis://:a%2Fb%40c@db1:6379/0"
