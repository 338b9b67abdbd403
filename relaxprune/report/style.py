"""The style sheet of a report: light and dark by the reader's setting, from 320 px wide upwards."""

STYLE = """
:root { color-scheme: light dark; --back: #ffffff; --ink: #1c2430; --soft: #566070; --line: #d5dae1; --card: #f5f7fa; }
@media (prefers-color-scheme: dark) {
  :root { --back: #14181f; --ink: #e4e8ee; --soft: #a2acba; --line: #343c48; --card: #1c222b; }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; background: var(--back); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0.5rem 0; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 0.4rem; padding-top: 0.6rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.2rem 0 0.2rem; }
p { max-width: 46rem; margin: 0.4rem 0; }
.soft, figcaption, caption { color: var(--soft); font-size: 0.875rem; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 9.5rem), 1fr)); gap: 0.6rem;
  margin: 1rem 0; }
.fact { background: var(--card); border: 1px solid var(--line); border-radius: 0.5rem; padding: 0.5rem 0.7rem; }
.fact strong { display: block; font-size: 1.3rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: 1.2rem;
  align-items: start; }
figure { margin: 0; min-width: 0; max-width: 32rem; }
figure svg { display: block; width: 100%; height: auto; }
figcaption { margin-top: 0.3rem; }
.wide { overflow-x: auto; max-width: 100%; }
.wide:focus-visible, summary:focus-visible { outline: 2px solid currentColor; outline-offset: 2px; }
table { border-collapse: collapse; font-size: 0.875rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
caption { text-align: left; padding-bottom: 0.3rem; }
th, td { padding: 0.2rem 0.7rem 0.2rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 0.5rem; padding: 0.6rem; font-size: 0.8rem;
  white-space: pre-wrap; }
.notice { border-left: 4px solid #d97706; padding: 0.2rem 0.8rem; background: var(--card); }
summary { cursor: pointer; padding: 0.3rem 0; }
nav a { margin-right: 0.8rem; color: inherit; display: inline-block; }
@media print { details { display: block; } }
"""
