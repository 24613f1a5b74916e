"use strict";
// Under the pointer: the values of all lines of a chart at the nearest episode.
for (const chart of document.querySelectorAll("svg.chart")) {
  const lines = [...chart.querySelectorAll(".line")].map((line) => ({
    label: line.dataset.label,
    points: JSON.parse(line.dataset.points),
  }));
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  chart.parentNode.append(tip);
  const cursor = document.createElementNS("http://www.w3.org/2000/svg", "line");
  cursor.setAttribute("class", "cursor");
  cursor.setAttribute("y1", "10");
  cursor.setAttribute("y2", "148");
  const nearest = (points, x) =>
    points.reduce((best, point) => (Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best), points[0]);

  chart.addEventListener("pointermove", (event) => {
    const box = chart.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * chart.viewBox.baseVal.width;
    const found = lines.filter((line) => line.points.length).map((line) => [line.label, nearest(line.points, x)]);
    tip.textContent = found.map(([label, point]) => `episode ${point[2]}  ${label}  ${point[3]}`).join("\n");
    tip.hidden = false;
    cursor.setAttribute("x1", found[0][1][0]);
    cursor.setAttribute("x2", found[0][1][0]);
    chart.append(cursor);
  });
  chart.addEventListener("pointerleave", () => {
    tip.hidden = true;
    cursor.remove();
  });
}
