// History of two minutes: rates and increases of counters, and the lines of the figures.

const SECONDS = 120;
const MINUTE_MS = 60_000;

/** Sum of the values of rows. */
export const sum = (rows) => rows.reduce((total, row) => total + row.value, 0);

/** Sums of rows by the text of a label, or of several. */
export function sumBy(rows, ...labels) {
  const sums = new Map();
  for (const row of rows) {
    const key = labels.map((label) => row[label]).join("\n");
    sums.set(key, (sums.get(key) ?? 0) + row.value);
  }
  return sums;
}

export class History {
  snapshots = [];

  add(snapshot) {
    const last = this.snapshots.at(-1);
    // Another process begins its counters again.
    if (last && last.started !== snapshot.started) this.snapshots = [];
    this.snapshots.push(snapshot);
    if (this.snapshots.length > SECONDS) this.snapshots.shift();
  }

  /** Increase per second of a counter over the last seconds; `valueOf` reads it from a snapshot. */
  rate(valueOf, seconds = 3) {
    const last = this.snapshots.at(-1);
    const first = this.snapshots.at(-1 - seconds) ?? this.snapshots[0];
    const elapsed = (last.now - first.now) / 1000;
    return elapsed > 0 ? Math.max(0, valueOf(last) - valueOf(first)) / elapsed : 0;
  }

  /** Increase of a counter in the last minute, or since this page was opened. */
  lastMinute(valueOf) {
    const last = this.snapshots.at(-1);
    const first = this.snapshots.find((snapshot) => last.now - snapshot.now <= MINUTE_MS);
    return Math.max(0, valueOf(last) - valueOf(first));
  }

  /** One value per snapshot. */
  series(valueOf) {
    return this.snapshots.map((snapshot, index) => valueOf(snapshot, this.snapshots[Math.max(0, index - 1)]));
  }
}

/** Draws values into a figure's line and area, the newest at the right. */
export function draw(svg, values) {
  const [width, height] = [120, 36];
  const most = Math.max(1, ...values);
  const at = (value, index) => {
    const x = width - ((values.length - 1 - index) * width) / (SECONDS - 1);
    const y = height - 2 - (value / most) * (height - 6);
    return `${x.toFixed(1)} ${y.toFixed(1)}`;
  };
  const line = values.length > 1 ? `M${values.map(at).join("L")}` : "";
  const start = line.slice(1).split(" ")[0];
  svg.querySelector(".line").setAttribute("d", line);
  svg.querySelector(".area").setAttribute("d", line && `${line}L${width} ${height}L${start} ${height}Z`);
}
