"""“Use via API”: Gradio's page for programs opens from the footer and by its address, without an error."""


def listened_to(page):
    faults = []
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on("response", lambda answer: faults.append(f"{answer.status} {answer.url}") if answer.status >= 400 else None)
    return faults


def test_it_opens_without_an_error_and_tells_of_ask_only_and_nothing_of_other_visitors(page, url):
    faults = listened_to(page)
    for opens in (lambda: page.locator("footer .show-api").click(), lambda: page.goto(f"{url}/?view=api")):
        with page.expect_response("**/gradio_api/mcp/schema"), page.expect_response("**/monitoring/summary"):
            opens()
        assert "1 API endpoint" in page.locator(".api-docs h2").inner_text()
        page.locator(".api-docs").get_by_text("/ask").first.wait_for()
        for language in ("JavaScript", "cURL", "MCP"):
            page.locator(".api-docs").get_by_text(language, exact=True).first.click()
        assert faults == []
    assert page.request.get(f"{url}/monitoring/summary").json() == {"functions": {}}
    assert page.request.get(f"{url}/gradio_api/mcp/schema").status == 300
    assert page.request.post(f"{url}/gradio_api/mcp/", data={}).status == 404
    assert page.request.get(f"{url}/monitoring/key").status == 404
