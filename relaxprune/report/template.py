"""The page of a report. Everything put in is escaped unless it comes as ``Markup`` from our own figures and tables."""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="relaxprune.report {{ version }}">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<link rel="icon" href="data:,">
<title>{{ title }}</title>
<style>{{ style }}</style>
</head>
<body>
<header>
<h1>{{ title }}</h1>
{% for line in lead %}<p>{{ line }}</p>
{% endfor %}
{% for notice in notices %}<p class="notice">{{ notice }}</p>
{% endfor %}
{% if facts %}<div class="facts">
{% for label, value, note in facts %}<div class="fact"><span class="soft">{{ label }}</span><strong>{{ value }}</strong>
<span class="soft">{{ note }}</span></div>
{% endfor %}</div>{% endif %}
<nav aria-label="Sections">{% for section in sections %}<a href="#{{ section.key }}">{{ section.title }}</a>
{% endfor %}</nav>
</header>
<main>
{% for section in sections %}<section id="{{ section.key }}">
<h2>{{ section.title }}</h2>
{% for paragraph in section.text %}<p>{{ paragraph }}</p>
{% endfor %}
{% for group in section.groups %}
{% if group.title %}<h3>{{ group.title }}</h3>{% endif %}
{% if group.figures %}<div class="figures">
{% for figure in group.figures %}<figure>{{ figure.svg }}<figcaption>{{ figure.caption }}</figcaption></figure>
{% endfor %}</div>{% endif %}
{% for table in group.tables %}
{% if table.folded %}<details><summary>{{ table.title }}</summary>{% endif %}
<div class="wide" tabindex="0" role="region" aria-label="{{ table.title }}">{{ table.html }}</div>
{% if table.folded %}</details>{% endif %}
{% endfor %}
{% endfor %}
{% for block in section.code %}<pre><code>{{ block }}</code></pre>
{% endfor %}
</section>
{% endfor %}
</main>
<footer><p class="soft">Made by relaxprune {{ version }}. The same numbers as JSON: {{ json_name }}.
Zeros alone do not make a model faster.</p></footer>
</body>
</html>
"""
