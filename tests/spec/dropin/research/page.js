// The reader's page, written for nfactorial 0.1.31: which tools are running or done, what the sub-agents do, how far they
// are, and the answer. It reads nothing but the updates that the backend sends.

let story = null;
let answer = "";
let bar = 0;
const tools = new Map(); // by the id of the call
const finders = new Map(); // by task id: the tools and the end of each sub-agent

const describe = ({ name, state, note }) => `${name} ${state}${note ? `: ${note}` : ""}`;

function draw() {
  const items = (texts) => texts.map((text) => `<li>${text}</li>`).join("");
  const finder = (one) => [...[...one.tools.values()].map(describe), one.end].join(" / ");
  document.getElementById("tools").innerHTML = items([...tools.values()].map(describe));
  document.getElementById("finders").innerHTML = items([...finders.values()].map(finder));
  document.getElementById("bar").value = bar;
  document.getElementById("answer").textContent = answer;
}

// What an update says about a tool call, noted in `calls`.
function noteCall(calls, { event_type: type, data, error }) {
  if (type === "progress_update_tool_action_started") {
    const call = data.args[0];
    calls.set(call.id, { name: call.function.name, state: "running" });
  } else if (type === "progress_update_tool_action_completed") {
    const { tool_call: call, output_data: output } = data.result;
    const note = Array.isArray(output) ? `${output.length} found` : output?.title;
    calls.set(call.id, { name: call.function.name, state: "done", note });
  } else if (type === "progress_update_tool_action_failed") {
    const call = data.args[0];
    calls.set(call.id, { name: call.function.name, state: "failed", note: error });
  }
}

function onFinder(finder, update) {
  noteCall(finder.tools, update);
  if (update.event_type === "agent_output") {
    finder.end = update.data.facts.join(", ");
  } else if (update.event_type === "run_failed" || update.event_type === "run_cancelled") {
    finder.end = update.error ?? "cancelled";
  }
}

function onStory(update) {
  noteCall(tools, update);
  const result = update.data?.result;
  if (update.event_type === "progress_update_tool_action_completed" && result.tool_call.function.name === "send_out") {
    for (const id of result.output_data) {
      finders.set(id, { tools: new Map(), end: "out" });
    }
  } else if (update.event_type === "agent_output") {
    answer = `${update.data.headline}. ${update.data.text}`;
  } else if (update.event_type === "run_failed" || update.event_type === "run_cancelled") {
    answer = `No story: ${update.error ?? "cancelled"}`;
  }
}

function onUpdate(update) {
  if (update.event_type === "batch_progress") {
    bar = update.progress;
  } else if (finders.has(update.task_id)) {
    onFinder(finders.get(update.task_id), update);
  } else if (update.task_id === story) {
    onStory(update);
  }
  draw();
}

async function order(reader, query) {
  const body = JSON.stringify({ reader, query });
  const headers = { "Content-Type": "application/json" };
  const response = await fetch(`http://${location.host}/stories`, { method: "POST", headers, body });
  story = (await response.json()).task_id;
  const socket = new WebSocket(`ws://${location.host}/updates/${reader}`);
  socket.onmessage = ({ data }) => onUpdate(JSON.parse(data));
  return socket;
}
