"""The view for one question about many pictures. table.js fills it, and keeps its table in the browser."""

KEPT = "The table is kept in this browser until you make a new one, with at most 200 MB of its pictures."


def table_form(most: int, forgetful: bool) -> str:
    """HTML of the view, without a row; a table has at most so many. The browser of a `forgetful` page keeps none."""
    kept = "The table lasts until you close or reload the page." if forgetful else KEPT
    return f"""<section aria-labelledby="table-title" data-most="{most}">
<p class="row"><button type="button" data-table="back">Back to the chat</button></p>
<h2 id="table-title">Ask about many pictures</h2>
<p class="note">One question, one row per picture. Each row counts as a question. <span class="kept">{kept}</span></p>
<div class="form">
<p class="row"><button type="button" data-table="folder">Choose a folder</button>
<button type="button" data-table="pictures">Choose pictures</button> <span class="chosen"></span></p>
<textarea rows="2" aria-label="The question about each picture"
placeholder="Is there a person in the picture?"></textarea>
<p class="row"><button type="button" class="primary" data-table="begin">Ask</button>
<button type="button" data-table="fields">Answer as JSON</button> <span class="fields"></span></p>
</div>
<div class="made" hidden>
<p class="question" translate="no"></p>
<p class="row"><button type="button" class="primary" data-table="go">Go on</button>
<button type="button" class="primary" data-table="stop" hidden>Stop</button>
<progress aria-label="Pictures asked about"></progress> <span class="count"></span></p>
<p class="row"><button type="button" data-table="sort" aria-pressed="false">Doubtful first</button>
<button type="button" data-table="csv">Download as CSV</button>
<button type="button" data-table="new">New table</button></p>
</div>
<p class="said" role="status"></p>
<div class="rows" tabindex="0" role="region" aria-label="Table of answers" hidden><table><thead></thead><tbody></tbody>
</table></div></section>"""
