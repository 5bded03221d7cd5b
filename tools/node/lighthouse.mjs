// Measure pages with Lighthouse in one Chromium; print a line of JSON for each.
//
// node lighthouse.mjs CHROMIUM JOB..., where a job is desktop:ADDRESS or mobile:ADDRESS.
import { launch } from "chrome-launcher";
import lighthouse, { desktopConfig } from "lighthouse";

const TIMES = [
  "first-contentful-paint",
  "largest-contentful-paint",
  "total-blocking-time",
  "speed-index",
];
const [chromePath, ...jobs] = process.argv.slice(2);
const chrome = await launch({
  chromePath,
  chromeFlags: [
    "--headless=new",
    "--disable-gpu",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", // no other host is reached
    ...(process.getuid?.() === 0 ? ["--no-sandbox"] : []),
  ],
});
try {
  for (const job of jobs) {
    const [, form, url] = job.match(/^(desktop|mobile):(.*)$/);
    const { lhr } = await lighthouse(
      url,
      { port: chrome.port, logLevel: "error", disableFullPageScreenshot: true },
      form === "desktop" ? desktopConfig : undefined, // Lighthouse's own default is a phone
    );
    const { audits, categories } = lhr;
    const refs = Object.values(categories).flatMap((category) => category.auditRefs);
    const judged = refs.filter((ref) => ref.weight > 0 && audits[ref.id].score !== null);
    console.log(
      JSON.stringify({
        url,
        form,
        error: lhr.runtimeError?.message,
        machine: lhr.environment.benchmarkIndex,
        scores: Object.fromEntries(
          Object.entries(categories).map(([name, { score }]) => [name, Math.round(100 * score)]),
        ),
        milliseconds: Object.fromEntries(
          TIMES.map((name) => [name, Math.round(audits[name].numericValue)]),
        ),
        shift: audits["cumulative-layout-shift"].numericValue,
        requests: audits["network-requests"].details.items
          .filter((item) => item.url.startsWith("http"))
          .map((item) => ({ url: item.url, bytes: item.transferSize })),
        imperfect: judged
          .map((ref) => audits[ref.id])
          .filter((audit) => audit.score < 0.9)
          .map(({ id, displayValue, title, details }) => {
            const node = details?.items?.[0]?.node;
            return `${id} (${[displayValue ?? title, node?.selector].filter(Boolean).join(": ")})`;
          }),
      }),
    );
  }
} finally {
  chrome.kill();
}
