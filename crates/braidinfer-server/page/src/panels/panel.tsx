// The panel beside the conversation: settings, the report of the model, metrics.

import { useEffect, useRef } from "preact/hooks";

import { IconButton } from "../page/controls";
import { closePanel } from "../page/panels";
import { modelOf, state, type PanelName } from "../page/state";
import { SettingsPanel } from "../settings/panel";
import { Metrics } from "./metrics";
import { showReport } from "./report";

const TITLES: Record<PanelName, string> = { settings: "Settings", report: "Report", metrics: "Metrics" };

export function Panel({ name }: { name: PanelName }) {
  const title = useRef<HTMLHeadingElement>(null);
  const model = modelOf(state.conversation)?.name ?? null;
  useEffect(() => title.current?.focus(), [name]);
  return (
    <aside id="panel" aria-labelledby="panel-title">
      <div class="panel-head">
        <h2 id="panel-title" ref={title} tabIndex={-1}>
          {TITLES[name]}
        </h2>
        <IconButton icon="close" label="Close" class="close-panel" onClick={closePanel} />
      </div>
      {name !== "settings" && (state.models?.length ?? 0) > 1 && <p class="hint">Of {model}</p>}
      {name === "settings" && <SettingsPanel />}
      {name === "report" && <ReportPanel key={model} model={model} />}
      {name === "metrics" && <MetricsPanel key={model} model={model} />}
    </aside>
  );
}

function ReportPanel({ model }: { model: string | null }) {
  const panel = useRef<HTMLDivElement>(null);
  useEffect(() => {
    const stopper = new AbortController();
    if (panel.current) void showReport(panel.current, model, stopper.signal);
    return () => stopper.abort();
  }, []);
  return <div id="report" ref={panel} />;
}

function MetricsPanel({ model }: { model: string | null }) {
  const panel = useRef<HTMLDivElement>(null);
  useEffect(() => {
    if (!panel.current) return;
    const metrics = new Metrics(panel.current, model);
    return () => metrics.stop();
  }, []);
  return <div id="metrics" ref={panel} />;
}
